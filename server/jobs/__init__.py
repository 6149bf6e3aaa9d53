"""Fine-tuning jobs as a server has them: what is asked for, who trains it, how the result is published."""
