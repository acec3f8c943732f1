"""Pure decisions of the driver: no clock, no thread, no Ray, no log; same input, same output."""
