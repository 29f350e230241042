"""The structure of the report page, filled by `page.py` with automatic escaping.

Every value arrives as plain text and is escaped by jinja2; only the style sheet, the script and
the charts drawn by `curves.py` are trusted.  The look of it is in `style.py`.
"""

from __future__ import annotations

TEMPLATE = """
{%- macro run_name(run) -%}
<span class="dot-mark {{ run.colour }}" aria-hidden="true"></span><span>
{%- for part in run.label.split("_") %}{% if not loop.first %}_<wbr>{% endif %}{{ part }}{% endfor -%}
</span>
{%- endmacro -%}

{%- macro picture(one, alt) -%}
{%- if one.address -%}
<img src="{{ one.address }}" alt="{{ alt }}" width="{{ one.width_px }}" height="{{ one.height_px }}"
 decoding="async"{% if one.width_px <= 160 %} class="crisp"{% endif %}>
{%- else -%}<span class="none">{{ one.problem or "no picture" }}</span>{%- endif -%}
{%- endmacro -%}

{%- macro metric_cell(cell) -%}
{%- if cell is none -%}<td class="number soft">–</td>
{%- else -%}
<td class="number" title="{{ cell.exact }}">
{%- if cell.best %}<b class="value">{{ cell.value }}</b>{% else %}<span class="value">{{ cell.value }}</span>{% endif -%}
{%- if cell.spread %} <span class="spread">{{ cell.spread }}</span>{% endif -%}
{%- if cell.tied %} <span title="its interval overlaps that of the best">≈</span>{% endif -%}
{%- if cell.interval %} <span class="interval">{{ cell.interval }}</span>{% endif -%}
{%- if cell.count or cell.chance %}<small>{{ cell.count }}{% if cell.count and cell.chance %} · {% endif %}{{ cell.chance }}</small>{% endif -%}
</td>
{%- endif -%}
{%- endmacro -%}

{%- macro cost_cells(costs, has) -%}
<td class="cost">{{ costs.time }}{% if costs.steps %}<small>{{ costs.steps }}</small>{% endif %}</td>
{%- if has.processor %}<td class="cost">{{ costs.processor }}</td>{% endif -%}
{%- if has.memory %}<td class="cost">{{ costs.memory }}</td>{% endif -%}
{%- if has.rate %}<td class="cost">{{ costs.rate }}{% if costs.machine %}<small>{{ costs.machine }}</small>{% endif %}</td>{% endif -%}
{%- endmacro -%}

{%- macro metric_table(stage, made, title, head) -%}
<div class="wide" tabindex="0" role="region" aria-label="{{ title }}, {{ stage.title }}"><table>
<thead><tr><th scope="col">{{ head }}</th>{% for one in stage.names %}<th scope="col">{{ run_name(one) }}{% if one.seeds %}<small>{{ one.seeds }}</small>{% endif %}</th>{% endfor %}</tr></thead><tbody>
{%- for column, cells in made %}
<tr><th scope="row">{{ column.title }} {{ column.arrow }}<small>{{ column.protocol }}, {{ column.split }}</small>
{%- for note in column.notes %}<small>{{ note }}</small>{% endfor %}</th>
{%- for cell in cells %}{{ metric_cell(cell) }}{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{%- endmacro -%}

{%- macro published_table(table) -%}
<div class="wide" tabindex="0" role="region" aria-label="Published numbers, {{ table.title }}"><table>
<thead><tr><th scope="col">method</th><th scope="col">input</th>
{%- for name in table.metrics %}<th scope="col">{{ name }}</th>{% endfor %}<th scope="col">source</th></tr></thead>
<tbody>
{%- for row in table.rows %}
<tr><th scope="row">{{ row.method }}</th><td>{{ row.input }}</td>
{%- for name in table.metrics %}<td class="number">{{ row.values.get(name, "–") }}</td>{% endfor %}
<td>{% if sources[row.source][1] %}<a href="{{ sources[row.source][1] }}" rel="noreferrer">{{ sources[row.source][0] }}</a>
{%- else %}{{ sources[row.source][0] }}{% endif %}{% if row.note %}<small>{{ row.note }}</small>{% endif %}</td></tr>
{%- endfor %}
</tbody></table></div>
<p class="hint">{{ table.caution }}</p>
{%- endmacro -%}

{%- macro chart_figure(chart) -%}
<figure data-chart="{{ chart.index }}"><figcaption><span>{{ chart.title }}</span>
<small>{{ "validation" if chart.kind == "val" else "training" }}{% if chart.unit != "step" %}, {{ chart.unit }}{% endif %}</small></figcaption>
{{ chart.svg }}</figure>
{%- endmacro -%}

<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="generator" content="speech2image {{ version }}">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the numbers</a>
<header>
<h1>{{ title }}</h1>
<p class="lead">{{ summary }}</p>
<nav aria-label="Sections">
{%- for section in sections %}
{%- if sections | length > 1 %}<a href="#{{ section.id }}"><strong>{{ section.corpus }}</strong></a>{% endif %}
<a href="#{{ section.id }}-numbers">Numbers</a>
{%- if section.stages_with_costs %}<a href="#{{ section.id }}-costs">Compute</a>{% endif %}
{%- if section.steps %}<a href="#{{ section.id }}-steps">Steps</a>{% endif %}
{%- if section.rows %}<a href="#{{ section.id }}-utterances">The same utterances</a>{% endif %}
{%- if section.grids %}<a href="#{{ section.id }}-training">Over training</a>{% endif %}
{%- if section.stages_with_charts %}<a href="#{{ section.id }}-curves">Curves</a>{% endif %}
<a href="#{{ section.id }}-runs">Runs</a>
{%- endfor %}
</nav>
</header>
<main id="main">
{%- if unfinished %}
<div class="gaps" id="unfinished"><h4>Jobs of this sweep that did not finish</h4><ul>
{%- for name, reason in unfinished %}<li><strong>{{ name }}</strong>: {{ reason }}</li>{% endfor %}
</ul></div>
{%- endif %}
{%- for section in sections %}
<section id="{{ section.id }}" aria-labelledby="{{ section.id }}-title">
<h2 id="{{ section.id }}-title">{{ section.corpus }}</h2>
<p>{{ section.summary }}</p>
{%- if section.gaps %}
<div class="gaps"><h4>Missing or damaged</h4><ul>
{%- for label, gap in section.gaps %}<li><strong>{{ label }}</strong>: {{ gap }}</li>{% endfor %}
</ul></div>
{%- endif %}

<h3 id="{{ section.id }}-numbers">Numbers</h3>
<p class="hint">Each number: value [interval], how many items it was measured on, and what chance would give; of
several seeds the mean ± standard deviation [t interval of the mean]. Bold: best of its column; ≈: its interval overlaps
that of the best. The protocol stands under each name.</p>
{%- for stage in section.stages %}
<h4>{{ stage.title }}</h4>
<div class="wide" tabindex="0" role="region" aria-label="{{ stage.title }} on {{ section.corpus }}"><table class="own">
<thead><tr><th scope="col">method</th><th scope="col">input</th>
{%- for column in stage.headlines %}
<th scope="col">{{ column.title }} {{ column.arrow }}<small>{{ column.protocol }}, {{ column.split }}</small></th>
{%- endfor %}
<th scope="col">training</th>
{%- if stage.has.processor %}<th scope="col">processor<small>time of training</small></th>{% endif %}
{%- if stage.has.memory %}<th scope="col">memory<small>at most</small></th>{% endif %}
{%- if stage.has.rate %}<th scope="col">images/s<small>painting</small></th>{% endif %}</tr></thead>
<tbody>
{%- for group in stage.groups %}
<tr><th scope="row">{{ run_name(group) }}<small>{{ group.built_of }}</small>
{%- if group.members %}<button type="button" class="fold" hidden aria-expanded="true" data-fold="{{ section.id }}-{{ stage.name }}-{{ group.place }}">{{ group.seeds }}</button>
{%- endif %}</th><td>{{ group.input }}</td>
{%- for cell in group.cells %}{{ metric_cell(cell) }}{% endfor %}{{ cost_cells(group.costs, stage.has) }}</tr>
{%- for member in group.members %}
<tr class="member" data-folded="{{ section.id }}-{{ stage.name }}-{{ group.place }}"><th scope="row">{{ run_name(member.run) }}</th><td></td>
{%- for cell in member.cells %}{{ metric_cell(cell) }}{% endfor %}{{ cost_cells(member.run.costs, stage.has) }}</tr>
{%- endfor %}
{%- endfor %}
</tbody></table></div>
{%- if stage.comparisons %}
<div class="differences">
<h4>Differences, and whether they are more than chance</h4>
{%- for one in stage.comparisons %}
<details{% if loop.first %} open{% endif %}><summary>{{ one.metric }} <span class="soft">{{ one.protocol }}</span></summary>
<p class="hint">{{ one.about }}</p>
<ul>{% for pair in one.pairs %}<li class="{{ "shown" if pair.p < 0.05 else "soft" }}">{{ pair.sentence }}</li>{% endfor %}</ul></details>
{%- endfor %}</div>
{%- endif %}
{%- if stage.controls %}
<details{% if stage.controls | length <= 8 %} open{% endif %}>
<summary>Bounds and controls ({{ stage.controls | length }}): what the measure itself says, no contenders</summary>
{{ metric_table(stage, stage.controls, "Bounds and controls", "bound or control") }}</details>
{%- endif %}
{%- if stage.columns %}
<details>
<summary>Every metric of these runs ({{ stage.columns | length }}), with notes</summary>
{{ metric_table(stage, stage.columns, "Every metric", "metric") }}</details>
{%- endif %}
{%- endfor %}

{%- if section.stages_with_costs %}
<h3 id="{{ section.id }}-costs">Quality against compute</h3>
<p class="hint">Each point is a run, whiskers are its interval. Up and left is better where ↑, down and left where ↓.</p>
{%- for stage in section.stages_with_costs %}
{%- if section.stages_with_costs | length > 1 %}<h4>{{ stage.title }}</h4>{% endif %}
<div class="legend">{% for group in stage.groups %}<span>{{ run_name(group) }}</span>{% endfor %}</div>
<div class="figures">
{%- for one in stage.figures %}
<figure><figcaption><span>{{ one.figure.title }} against {{ one.figure.axis }}</span></figcaption>{{ one.svg }}
{%- if one.figure.note %}<p class="hint">{{ one.figure.note }}</p>{% endif %}</figure>
{%- endfor %}
</div>
{%- if stage.time_charts %}
<h4>During training, over {{ stage.time_axis }}</h4>
<div class="charts">{% for chart in stage.time_charts %}{{ chart_figure(chart) }}{% endfor %}</div>
{%- endif %}
{%- endfor %}
{%- endif %}

{%- if section.steps %}
<h3 id="{{ section.id }}-steps">Quality against steps</h3>
<p class="hint">The same trained model with other samplers and numbers of steps; whiskers are 95 % intervals.</p>
{%- for one in section.steps %}
<h4>{{ one.figure.label }}<small class="soft"> · {{ one.figure.about }}</small></h4>
<div class="steps"><figure><div class="legend">
{%- for line in one.figure.lines %}<span><span class="dot-mark {{ one.figure.colour(loop.index0) }}" aria-hidden="true"></span>{{ line }}</span>{% endfor %}</div>
<figcaption class="hint">{{ one.figure.metric }} {{ one.figure.arrow }}</figcaption>
{{ one.svg }}</figure>
<div class="wide" tabindex="0" role="region" aria-label="Quality against steps, {{ one.figure.label }}"><table>
<thead><tr><th scope="col">sampler</th><th scope="col">steps</th><th scope="col">calls</th>
<th scope="col">{{ one.figure.metric }} {{ one.figure.arrow }}</th><th scope="col">time an image</th></tr></thead><tbody>
{%- for row in one.figure.rows %}
<tr><th scope="row"><span class="dot-mark {{ one.figure.colour(row.line) }}" aria-hidden="true"></span>{{ row.sampler }}</th>
<td class="number">{{ row.steps }}</td><td class="number">{{ row.calls }}</td>
<td class="number">{{ row.value }} <span class="interval">{{ row.interval }}</span></td><td class="number">{{ row.time }}</td></tr>
{%- endfor %}
</tbody></table></div></div>
{%- endfor %}
{%- endif %}

{%- if section.published %}
<h3>Published numbers on {{ section.published.title }}</h3>
<p class="hint">From papers, not measured here, and not to be read as one table with the numbers above.</p>
{{ published_table(section.published) }}
{%- endif %}

{%- if section.rows %}
<h3 id="{{ section.id }}-utterances">The same utterances</h3>
<p class="hint">Test utterances, the same for every run: what was said, the real picture it was said about, and what
each run painted from the sound alone. {{ section.rows_note }}</p>
<div class="controls" hidden><label>picture size
<input type="range" min="64" max="288" step="16" value="144" data-cell="{{ section.id }}-rows"></label></div>
<div id="{{ section.id }}-rows"{% if section.is_stacked %} class="stacked"{% endif %}>
{%- for row in section.rows %}
<article class="row" data-utterance="{{ row.utterance }}">
<div><p class="said">
{%- for text, colour in row.pieces %}{% if colour %}<mark style="--colour: {{ colour }}">{{ text }}</mark>{% else %}{{ text }}{% endif %}{% endfor -%}
</p>
<p class="hint">{{ row.class_name }}<span class="key" title="{{ row.utterance }}">{{ row.utterance }}</span></p>
{%- if row.sound.address %}
<audio controls preload="metadata" src="{{ row.sound.address }}" aria-label="Recording: {{ row.caption }}"></audio>
<figure class="spectrogram"><img src="{{ row.sound.spectrogram.address }}" alt="Spectrogram of the recording"
 width="{{ row.sound.spectrogram.width_px }}" height="{{ row.sound.spectrogram.height_px }}" decoding="async">
{%- if row.attention %}<svg class="attention" viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" aria-label="Where {{ row.attention | map(attribute="name") | join(", ") }} listens">
{%- for one in row.attention %}<path class="{{ one.line }}" d="{{ one.path }}"/>{% endfor %}</svg>{% endif %}<span class="cursor"></span>
<figcaption><span>0 s</span><span>0 to 8 kHz, mel scale</span><span>{{ row.sound_end }}</span></figcaption></figure>
{%- if row.attention %}<p class="listens">{% for one in row.attention %}<span class="{{ one.line }}"></span>attention of {{ one.name }} {% endfor %}</p>{% endif %}
{%- else %}<p class="hint">No recording to play: {{ row.sound.problem }}.</p>{% endif %}
</div>
<div class="pictures">
<figure class="real"><div class="samples">{{ picture(row.real, "Real picture: " ~ row.caption) }}</div>
<figcaption>real picture</figcaption></figure>
{%- for cell in row.cells %}
<figure><div class="samples">
{%- for one in cell.pictures %}{{ picture(one, cell.run.label ~ ", sample " ~ loop.index ~ ": " ~ row.caption) }}
{%- else %}<span class="none">not generated</span>{% endfor -%}
</div><figcaption>{{ run_name(cell.run) }}</figcaption></figure>
{%- endfor %}
</div></article>
{%- endfor %}
</div>
{%- endif %}

{%- if section.grids %}
<h3 id="{{ section.id }}-training">Over training</h3>
<p class="hint">The same held-out utterances with the same noise, painted during training. Move the slider.</p>
<div class="grids">
{%- for grid in section.grids %}
<figure><figcaption><span>{{ run_name(grid.run) }}</span><output>step {{ grid.steps[-1] }}</output></figcaption>
{%- for one in grid.pictures %}
<img src="{{ one.address }}" alt="Samples of {{ grid.run.label }} at step {{ grid.steps[loop.index0] }}"
 width="{{ one.width_px }}" height="{{ one.height_px }}" data-step="{{ grid.steps[loop.index0] }}" decoding="async"
{%- if one.width_px < 340 %} class="crisp"{% endif %}{% if not loop.last %} hidden{% endif %}>
{%- endfor %}
{%- if grid.pictures | length > 1 %}
<input type="range" min="0" max="{{ grid.pictures | length - 1 }}" value="{{ grid.pictures | length - 1 }}" hidden
 aria-label="Training step of the samples of {{ grid.run.label }}" aria-valuetext="step {{ grid.steps[-1] }}">
{%- endif %}</figure>
{%- endfor %}
</div>
{%- endif %}

{%- if section.stages_with_charts %}
<h3 id="{{ section.id }}-curves">Curves</h3>
<p class="hint">Over training steps. Training curves are lightly smoothed, the raw values faint behind them; validation
points are as measured.</p>
{%- for stage in section.stages_with_charts %}
{%- if section.stages | length > 1 %}<h4>{{ stage.title }}</h4>{% endif %}
<div class="legend">{% for run in stage.runs %}<span>{{ run_name(run) }}</span>{% endfor %}</div>
<div class="charts">{% for chart in stage.charts %}{{ chart_figure(chart) }}{% endfor %}</div>
{%- if stage.rates %}
<details><summary>Rates and other scalars ({{ stage.rates | length }})</summary>
<div class="charts">{% for chart in stage.rates %}{{ chart_figure(chart) }}{% endfor %}</div></details>
{%- endif %}
{%- endfor %}
{%- endif %}

<h3 id="{{ section.id }}-runs">Runs</h3>
{%- for run in section.runs %}
<details class="card"><summary><strong>{{ run_name(run) }}</strong> <span class="soft">{{ run.built_of }}</span></summary>
<dl class="facts">{% for name, value in run.facts %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
{%- if run.command %}<h4>Command</h4><pre tabindex="0">{{ run.command }}</pre>{% endif %}
{%- if run.gaps %}<h4>Missing or damaged</h4><ul>{% for gap in run.gaps %}<li>{{ gap }}</li>{% endfor %}</ul>{% endif %}
{%- if run.events %}<details><summary>Events ({{ run.events | length }})</summary><pre tabindex="0">{{ run.events | join("\\n") }}</pre></details>{% endif %}
{%- if run.config %}<details><summary>Configuration</summary><pre tabindex="0">{{ run.config }}</pre></details>{% endif %}
{%- for name, text in run.evaluations %}
<details><summary>Evaluation, {{ name }}</summary><pre tabindex="0">{{ text }}</pre></details>{% endfor %}
</details>
{%- endfor %}
</section>
{%- endfor %}

{%- if elsewhere %}
<details class="card"><summary>Published numbers on other corpora (not comparable with this page)</summary>
{%- for table in elsewhere %}<h4>{{ table.title }}</h4>{{ published_table(table) }}{% endfor %}</details>
{%- endif %}
</main>
<footer>Made by speech2image {{ version }} from {{ num_runs }} run folder{{ "" if num_runs == 1 else "s" }}. One file: pictures,
sound and script are inside it, and it loads nothing.</footer>
<script type="application/json" id="charts">{{ plot | tojson }}</script>
<script>{{ script }}</script>
</body>
</html>
""".strip()
"""The page; see `page._values` for what it is filled with."""
