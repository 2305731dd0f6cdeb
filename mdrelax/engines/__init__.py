"""engines: adapters that let a trained model move atoms."""
