"""Makes events and puts them on the stream; owns the Event and its bytes."""
