"""Every option of training, typed and checked."""
