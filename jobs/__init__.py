"""What a user runs: a config, the steps it wires, the report it ends with."""
