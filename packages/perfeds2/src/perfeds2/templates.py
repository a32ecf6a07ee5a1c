"""The page template, as text so that it needs no package data."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
table{border-collapse:collapse;font-size:.88rem;margin:1rem 0}
td,th{border-bottom:1px solid #ddd;padding:.3rem .5rem;text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}
img{max-width:100%}figure{margin:1.2rem 0}figcaption{font-size:.9rem;color:#555}
.wide{overflow-x:auto}.yes{color:#2c6e2c}.no{color:#a02c12}code{font-size:.9em}
</style></head><body>
<h1>{{ title }}</h1>
{% for line in intro %}<p>{{ line }}</p>{% endfor %}
{% if claims %}<h2>Claims</h2><div class="wide"><table>
<tr><th>claim</th><th>paper</th><th>measured</th><th>met</th><th>how</th></tr>
{% for c in claims %}<tr><td>{{ c.name }}</td>
<td>{{ "no figure" if c.paper is none else c.paper }}</td>
<td>{{ c.measured }} {{ c.unit }}</td>
<td class="{{ 'yes' if c.met else 'no' if c.met is sameas false else '' }}">
{{ "yes" if c.met else "no" if c.met is sameas false else "shown" }}</td>
<td>{{ c.how }}</td></tr>{% endfor %}</table></div>{% endif %}
{% for t in tables %}<h2>{{ t.title }}</h2><div class="wide"><table>
<tr>{% for c in t.columns %}<th>{{ c }}</th>{% endfor %}</tr>
{% for row in t.rows %}<tr>{% for v in row %}
<td class="{{ 'n' if v is number else '' }}">{{ v }}</td>{% endfor %}</tr>{% endfor %}
</table></div>{% endfor %}
{% for f in figures %}<h2>{{ f.title }}</h2><figure><img src="{{ f.src }}" alt="{{ f.title }}">
<figcaption>{{ f.caption }}</figcaption></figure>{% endfor %}
<p>perfeds2 {{ version }}{% if seed is not none %}, seed {{ seed }}{% endif %}</p>
</body></html>
"""
