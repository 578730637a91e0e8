"""A run's life on disk: begin, lock, drive, stop, resume, finish, prove.

Knows nothing of text, stores or tokenizers. A kind of run (`life.Kind`) brings these, and a trainer
(`trainer.Trainer`, such as `train.loop.Loop`) takes the steps."""
