"""What each command does, in one call of a request and a job."""
