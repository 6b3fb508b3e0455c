"""Images relabelled at two levels: fine classes, and the one coarse class that all of them share."""
