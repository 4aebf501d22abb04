"""What `losatok evaluate`, `analyze` and `profile` measure, a module for each."""
