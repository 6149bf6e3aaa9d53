"""What a finished adapter is judged by before it is published, and how it scores beside the base."""
