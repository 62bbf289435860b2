"""Tables of a report, as `formats.table.Table`, from analyzed results."""
