"""Objects to rows: the formats, how they are recognized, and what is wrong with an object."""
