"""Sources of scores, and how scores are scaled, weighted and penalized before they are trained on."""
