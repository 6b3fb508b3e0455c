"""HTML pages and plots built from a finished run."""
