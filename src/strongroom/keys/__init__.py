"""Who may open a repository. `base` is the promise: wrap and unwrap; each other file is one holder."""
