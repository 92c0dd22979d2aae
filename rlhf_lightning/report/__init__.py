"""One page on what runs did."""
