"""The iteration that every algorithm of one kind shares."""
