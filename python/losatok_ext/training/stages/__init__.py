"""The stages of training: what each trains, on what, and with which losses."""
