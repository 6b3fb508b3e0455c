"""What the trainings of several jobs share: images from key tables, and which of them cannot be read."""
