"""Who may open a repository. `base` is the promise: wrap and unwrap; other files are holders."""
