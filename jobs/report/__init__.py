"""What the reports of several jobs share."""
