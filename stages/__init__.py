"""The methods, in plain torch, numpy and pyarrow: nothing here knows of Ray, files or jobs."""
