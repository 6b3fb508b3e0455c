"""Linear interpreters (LinearScope): a network at one image as a linear system, and what can be asked of it."""
