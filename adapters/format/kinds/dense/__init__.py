"""Kinds whose change of a weight is a whole matrix, made from the weight or from bases."""
