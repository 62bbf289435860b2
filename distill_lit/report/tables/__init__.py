"""Tables of a report, as `formats.table.Table`, from analysed results."""
