"""What travels: fields, messages, the wire and the run file. Imports nothing above itself."""
