"""The archive of the stream's records in S3, and the way back from there into the tables."""
