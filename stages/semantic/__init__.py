"""The two-level classifier: fine classes first, then the coarse class that follows from them (PROTOCOLS section 3)."""
