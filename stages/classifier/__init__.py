"""A classifier's last layer, trained anew for other classes."""
