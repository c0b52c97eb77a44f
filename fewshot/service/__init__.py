"""HTTP routes over one index, one error shape, and the web page that only calls them."""
