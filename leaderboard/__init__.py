"""What is shown: the database of results, the ranking and the site. Never loads a model."""
