"""Adapters as other tools write them, read into PEFT's form, and PEFT's form written as theirs."""
