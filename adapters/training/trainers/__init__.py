"""The trainers of the tasks, with their arguments, data sets and callbacks."""
