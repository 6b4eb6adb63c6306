from .template import page_template as page_template
