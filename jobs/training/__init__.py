"""What jobs that train share: what a user writes of it, their images, and which of them cannot be read."""
