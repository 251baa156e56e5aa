"""Many runs of one config: what differs between them, their start, one table of all."""
