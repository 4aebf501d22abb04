"""Style and script of a report's page."""

STYLE = """
:root{--paper:#fbfbfa;--card:#fff;--ink:#1c1f23;--soft:#626a73;--rule:#e3e5e8;--bar:#2f6f8f;--mark:#c2410c;
--line-0:#2f6f8f;--line-1:#c2410c;--line-2:#5b8c3e;--line-3:#8a5aa8;--line-4:#b58900;--line-5:#6b7280;color-scheme:light}
@media (prefers-color-scheme:dark){:root:not([data-theme=light]){--paper:#14171a;--card:#1c2024;--ink:#e7e9eb;
--soft:#9aa3ac;--rule:#31373d;--bar:#5fa8c9;--mark:#f08a4b;--line-0:#5fa8c9;--line-1:#f08a4b;--line-2:#93c572;
--line-3:#bf97d8;--line-4:#e0b84a;--line-5:#9ca3af;color-scheme:dark}}
:root[data-theme=dark]{--paper:#14171a;--card:#1c2024;--ink:#e7e9eb;--soft:#9aa3ac;--rule:#31373d;--bar:#5fa8c9;
--mark:#f08a4b;--line-0:#5fa8c9;--line-1:#f08a4b;--line-2:#93c572;--line-3:#bf97d8;--line-4:#e0b84a;--line-5:#9ca3af;
color-scheme:dark}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
header,main,footer{max-width:1100px;margin:0 auto;padding:0 24px}
header{display:flex;justify-content:space-between;align-items:flex-start;gap:24px;padding-top:32px}
h1{font-size:26px;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em}
h2{font-size:17px;margin:36px 0 10px}
h3{font-size:15px;margin:0}
h4{font-size:13px;font-weight:600;margin:0 0 6px;display:flex;justify-content:space-between}
h4 small,.facts,.note,footer,article p{color:var(--soft)}
.facts,.note,article p{font-size:13px;margin:0}
.facts b{font-weight:500;color:var(--ink)}
.note{margin-top:8px}
button#theme{border:1px solid var(--rule);background:var(--card);color:var(--ink);border-radius:6px;font-size:16px;
width:34px;height:34px;cursor:pointer}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(160px,1fr));gap:12px;margin-top:24px}
.figures div,figure,article{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:14px 16px}
.figures span,.figures small{display:block;color:var(--soft);font-size:12px}
.figures strong{display:block;font-size:25px;font-weight:600;font-variant-numeric:tabular-nums;line-height:1.3}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--rule);border-radius:8px}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:6px 9px;text-align:right;white-space:nowrap;border-top:1px solid var(--rule)}
thead th{border-top:0;color:var(--soft);font-weight:500}
th:first-child{text-align:left;font-weight:500}
td i{font-style:normal;color:var(--soft);font-size:12px}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(440px,100%),1fr));gap:16px;margin-top:36px}
figure{margin:0}
figcaption{font-size:13px;font-weight:600;margin-bottom:8px}
svg{width:100%;height:auto;display:block}
svg text{font-size:12px;fill:var(--ink)}
svg text.soft{fill:var(--soft)}
svg text.mark-text{fill:var(--mark)}
svg .rule{stroke:var(--rule)}
svg .soft-line{stroke:var(--soft)}
svg .ink{stroke:var(--ink)}
svg text.ink{stroke:none}
svg .bar{fill:var(--bar)}
svg .mark{stroke:var(--mark);stroke-dasharray:4 3;stroke-width:1.5}
svg polyline{fill:none;stroke-width:2}
.stroke-0{stroke:var(--line-0)}.stroke-1{stroke:var(--line-1)}.stroke-2{stroke:var(--line-2)}
.stroke-3{stroke:var(--line-3)}.stroke-4{stroke:var(--line-4)}.stroke-5{stroke:var(--line-5)}
.fill-0{fill:var(--line-0)}.fill-1{fill:var(--line-1)}.fill-2{fill:var(--line-2)}
.fill-3{fill:var(--line-3)}.fill-4{fill:var(--line-4)}.fill-5{fill:var(--line-5)}
article{margin-bottom:16px}
.sounds{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(320px,100%),1fr));gap:20px;margin-top:12px}
.picture{display:flex;gap:6px;height:150px}
.ticks{position:relative;width:26px;flex:none;font-size:11px;color:var(--soft)}
.ticks span{position:absolute;right:0;transform:translateY(50%)}
.mel{position:relative;flex:1;background:#000;border-radius:4px;overflow:hidden;cursor:pointer}
.mel img{width:100%;height:100%;display:block}
.head{position:absolute;top:0;bottom:0;left:0;width:1.5px;background:#fff;opacity:0}
audio{width:calc(100% - 32px);height:34px;margin:8px 0 0 32px}
summary{font-size:17px;font-weight:600;margin:36px 0 10px;cursor:pointer}
ul{margin:0;padding-left:20px;font-size:13px}
li{margin:3px 0;overflow-wrap:anywhere}
footer{padding-top:28px;padding-bottom:40px;font-size:12px}
"""

SCRIPT = """
const root=document.documentElement,players=[...document.querySelectorAll('audio')];
document.getElementById('theme').onclick=()=>{
 const dark=root.dataset.theme?root.dataset.theme==='dark':matchMedia('(prefers-color-scheme:dark)').matches;
 root.dataset.theme=dark?'light':'dark'};
for(const player of players){
 const mel=player.parentNode.querySelector('.mel'),head=mel.querySelector('.head');
 const draw=()=>{head.style.opacity=.9;head.style.left=100*player.currentTime/player.duration+'%';
  if(!player.paused)requestAnimationFrame(draw)};
 player.onplay=()=>{for(const other of players)if(other!==player)other.pause();draw()};
 player.onseeked=draw;
 mel.onclick=event=>{const box=mel.getBoundingClientRect();
  player.currentTime=player.duration*(event.clientX-box.left)/box.width;player.play()};
}
"""
