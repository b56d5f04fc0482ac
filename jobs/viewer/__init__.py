"""A page to look into a store: one HTML file that needs nothing else. `page.write_page` makes it."""
