//! The brokers and readers that the other tests stand on do what those tests think they do.
