"""What a stage trains on: recordings, stored tokens and features, cut into batches."""
