"""The one place that holds the version number, and that of the native interface."""

__version__ = "0.1.0"

#: Raised by whoever changes what the native module's functions take or do: a module
#: that was built before then says so instead of failing at its first call.
__interface__ = "10"
