"""Steps whose rows have the same bits in any company: all is computed in one way, however many there are."""
