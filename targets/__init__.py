"""WHERE it runs: export to a runtime, run it there, time it there."""
