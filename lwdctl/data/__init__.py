"""Readers of other people's demonstration formats, and what training draws from stores."""
