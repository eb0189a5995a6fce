"""What goes into the encoders: captions, names, photos, and how a batch is made of them."""
