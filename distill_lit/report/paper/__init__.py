"""Tables of a paper: chosen rows, columns and labels, of one experiment or of several."""
