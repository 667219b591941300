"""Training: state, one pure step, optimizers and schedules."""
