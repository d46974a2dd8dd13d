"""Who REMEMBERS: the study on disk, MLflow."""
