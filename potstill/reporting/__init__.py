"""What a run says of itself: its table, its report, its student's card. Reads the run's files and measures nothing."""
