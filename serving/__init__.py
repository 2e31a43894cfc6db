"""HTTP server: sessions whose memory is the model's own state."""
