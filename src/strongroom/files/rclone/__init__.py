"""Cloud folders as Source and Sink: one-shot `rclone` processes, and nothing that stays running."""
