"""What is remembered of batches: running and population statistics, policies, and their merging over processes."""
