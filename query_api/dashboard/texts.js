// Every text of the dashboard, in each of its languages. `{name}` is filled in; {one, other} are plural forms of `count`.

const named = (prefix, names) => Object.fromEntries(
  Object.entries(names).map(([name, [en, ko]]) => [`${prefix}_${name}`, { en, ko }]),
);

export const TEXTS = {
  // The bar and its settings
  skip: { en: "Skip to the figures", ko: "지표로 바로 가기" },
  site: { en: "Site", ko: "사이트" },
  timeRange: { en: "Time range", ko: "기간" },
  compare: { en: "Compare", ko: "이전 기간과 비교" },
  from: { en: "From", ko: "시작" },
  to: { en: "To", ko: "끝" },
  show: { en: "Show", ko: "보기" },
  giveBothDates: { en: "Give both dates with their times.", ko: "시작과 끝의 날짜와 시각을 모두 입력하세요." },
  fromBeforeTo: { en: "“From” must be before “To”.", ko: "시작은 끝보다 앞서야 합니다." },
  rangeTooLong: { en: "A range covers at most 366 days.", ko: "기간은 최대 366일까지 선택할 수 있습니다." },
  settings: { en: "Settings", ko: "설정" },
  timeZone: { en: "Time zone", ko: "시간대" },
  zoneOfBrowser: { en: "{zone} (this browser)", ko: "{zone} (이 브라우저)" },
  language: { en: "Language", ko: "언어" },
  theme: { en: "Theme", ko: "테마" },
  ...named("theme", { system: ["System", "시스템"], light: ["Light", "라이트"], dark: ["Dark", "다크"] }),
  timesIn: { en: "All times are in {zone}.", ko: "모든 시각은 {zone} 기준입니다." },
  filterText: { en: "{dimension}: {label}", ko: "{dimension}: {label}" },
  removeFilter: { en: "Remove the filter {filter}", ko: "필터 해제 – {filter}" },
  ...named("range", {
    "1h": ["1 h", "1시간"], "6h": ["6 h", "6시간"], "24h": ["24 h", "24시간"], "7d": ["7 days", "7일"],
    "30d": ["30 days", "30일"], "12mo": ["12 months", "12개월"], custom: ["Custom", "직접 선택"],
  }),
  ...named("title", {
    "1h": ["Last hour", "최근 1시간"], "6h": ["Last 6 hours", "최근 6시간"], "24h": ["Last 24 hours", "최근 24시간"],
    "7d": ["Last 7 days", "최근 7일"], "30d": ["Last 30 days", "최근 30일"], "12mo": ["Last 12 months", "최근 12개월"],
    custom: ["Chosen range", "선택한 기간"],
  }),

  // How fresh, and what is wrong
  ...named("state", {
    loading: ["Loading", "불러오는 중"], live: ["Live", "실시간"], polling: ["Live, every 2 s", "실시간 (2초 간격)"],
    stale: ["Older figures", "이전 데이터"], failing: ["Not updating", "갱신 중단"],
  }),
  loading: { en: "Loading …", ko: "불러오는 중…" },
  justNow: { en: "now", ko: "방금" },
  now: { en: "now", ko: "현재" },
  partial: { en: "still counting", ko: "집계 중" },
  newestEvent: { en: "newest event {ago}", ko: "최근 이벤트 {ago}" },
  newestEventAt: { en: "The newest event that is counted arrived at {time}", ko: "집계에 포함된 가장 최근 이벤트 수신 시각: {time}" },
  behind: { en: "{duration} behind", ko: "처리 지연 {duration}" },
  staleSince: {
    en: "Figures of {time}: the database does not answer at the moment. They are renewed as soon as it does.",
    ko: "{time} 기준 데이터입니다. 지금은 데이터베이스가 응답하지 않으며, 응답하는 대로 갱신됩니다.",
  },
  outageShows: {
    en: "What you see is from {time}. The dashboard keeps trying.",
    ko: "화면의 내용은 {time} 기준이며, 계속 다시 시도합니다.",
  },
  outageNothing: {
    en: "There are no figures to show yet. The dashboard keeps trying.",
    ko: "아직 표시할 데이터가 없습니다. 계속 다시 시도합니다.",
  },
  tryNow: { en: "Try now", ko: "지금 다시 시도" },
  notUpToDate: { en: "Not up to date. {why}", ko: "최신 데이터가 아닙니다. {why}" },
  notAsAgreed: { en: "The query API’s answer is not as agreed.", ko: "조회 API의 응답 형식이 올바르지 않습니다." },
  unreachable: { en: "The query API cannot be reached.", ko: "조회 API에 연결할 수 없습니다." },
  tooSlow: {
    en: "The query API has not answered within {count} s.", ko: "조회 API가 {count}초 안에 응답하지 않았습니다.",
  },
  notJson: { en: "The query API’s answer is not JSON.", ko: "조회 API의 응답이 JSON이 아닙니다." },
  badStatus: { en: "The query API answered with status {status}.", ko: "조회 API가 상태 코드 {status}(으)로 응답했습니다." },
  // In English the API's own message says it.
  ...named("reason", {
    bad_parameter: ["", "요청한 조건이 올바르지 않습니다."],
    key_missing: ["", "읽기 키가 필요합니다."],
    key_unknown: ["", "등록되지 않은 읽기 키입니다."],
    other_site: ["", "다른 사이트의 읽기 키입니다."],
    too_many_streams: ["", "실시간 연결이 너무 많습니다."],
    internal: ["", "서버에서 오류가 발생했습니다."],
    unavailable: ["", "지금은 데이터베이스를 읽을 수 없습니다."],
  }),

  // The read key
  keyTitle: { en: "This site’s figures need a read key", ko: "이 사이트를 보려면 읽기 키가 필요합니다" },
  keyText: {
    en: "Ask whoever runs LiveInsight for the site’s key. It is kept in this tab only.",
    ko: "LiveInsight 관리자에게 사이트의 키를 요청하세요. 키는 이 탭에만 보관됩니다.",
  },
  keyLabel: { en: "Read key", ko: "읽기 키" },
  keyEmpty: { en: "Enter the key.", ko: "키를 입력하세요." },

  // Nothing to show
  noDataTitle: { en: "No data from {site} yet", ko: "{site}: 아직 수집된 데이터가 없습니다" },
  noDataText: {
    en: "As soon as a page with the tracker is opened, its visitor appears here. To install it:",
    ko: "추적 코드가 설치된 페이지를 누군가 열면 바로 여기에 나타납니다. 설치 방법:",
  },
  quietTitle: { en: "Nothing from {site} in this range", ko: "{site}: 이 기간에는 데이터가 없습니다" },
  quietText: {
    en: "Choose a longer range, or other dates. If there should be something now, see that each page has the tracker:",
    ko: "더 긴 기간이나 다른 날짜를 선택해 보세요. 지금 데이터가 있어야 한다면 모든 페이지에 추적 코드가 있는지 확인하세요:",
  },
  installHow: {
    en: "Put this line into each page, with your collector’s address. The first page view shows here within seconds.",
    ko: "수집기 주소를 넣어 이 줄을 모든 페이지에 추가하세요. 첫 페이지뷰가 몇 초 안에 표시됩니다.",
  },
  copy: { en: "Copy", ko: "복사" },
  copied: { en: "Copied", ko: "복사했습니다" },
  selected: { en: "Selected: press Ctrl+C", ko: "선택됨: Ctrl+C를 누르세요" },

  // Now
  visitorsNowTitle: { en: "Visitors now", ko: "현재 방문자" },
  visitorsNow: { en: { one: "{count} visitor now", other: "{count} visitors now" }, ko: "현재 방문자 {count}명" },
  titleNow: { en: "{people} now", ko: "현재 {people}명" },
  lastFiveMinutes: { en: "in the last 5 minutes", ko: "최근 5분" },
  activeSessions: {
    en: { one: "{count} session within 30 minutes", other: "{count} sessions within 30 minutes" },
    ko: "최근 30분 세션 {count}개",
  },
  lastThirtyMinutes: { en: "Last 30 minutes", ko: "최근 30분" },
  minutesName: { en: "Events by minute, last 30 minutes", ko: "최근 30분의 분당 이벤트" },
  otherEvents: { en: "Other events", ko: "기타 이벤트" },
  peak: { en: "peak {amount}", ko: "최고 {amount}" },
  beingRead: { en: "Being read now", ko: "지금 보고 있는 페이지" },
  nobodyReads: { en: "Nobody is reading right now.", ko: "지금 페이지를 보고 있는 방문자가 없습니다." },

  // Figures
  ...named("metric", {
    visitors: ["Visitors", "방문자"], sessions: ["Sessions", "세션"], page_views: ["Page views", "페이지뷰"],
    pages_per_session: ["Pages / session", "세션당 페이지뷰"], events: ["Events", "이벤트"],
    bounce_rate: ["Bounce rate", "이탈률"], avg_session_time: ["Average session", "평균 세션 시간"],
    median_session_time: ["Median session", "세션 시간 중앙값"], conversions: ["Conversions", "전환"],
    conversion_rate: ["Conversion rate", "전환율"], conversion_values: ["Conversion value", "전환 가치"],
  }),
  plusMinus: { en: "± {error} ({part})", ko: "± {error} ({part})" },
  estimate: { en: "An estimate, with its standard error", ko: "추정치와 표준 오차" },
  activeNow: { en: "{count} active now", ko: "현재 활성 {count}" },
  notKept: { en: "not kept here", ko: "집계 안 함" },
  notKeptWhy: {
    en: "This figure is not kept for a single label of this dimension.", ko: "이 항목에서는 값별로 집계하지 않는 지표입니다.",
  },
  wasBefore: { en: "{figure} in the previous period", ko: "이전 기간 {figure}" },
  pageViews: { en: { one: "{count} page view", other: "{count} page views" }, ko: "페이지뷰 {count}회" },
  conversions: { en: { one: "{count} conversion", other: "{count} conversions" }, ko: "전환 {count}건" },

  // Over time
  overTime: { en: "Over time", ko: "추이" },
  chartName: { en: "Figures over time", ko: "시간에 따른 지표" },
  ...named("step", {
    minute: ["by the minute", "1분 단위"], "5m": ["by 5 minutes", "5분 단위"], "15m": ["by the quarter-hour", "15분 단위"],
    hour: ["by the hour", "1시간 단위"], day: ["by the day", "하루 단위"],
  }),
  soFar: { en: ", so far", ko: ", 집계 중" },
  noVisitorsByDay: {
    en: "Visitors by the day are kept for the days of UTC. For their line choose the time zone UTC, or at most 92 days.",
    ko: "일별 방문자는 UTC 기준 하루 단위로 저장됩니다. 추이를 보려면 시간대를 UTC로 바꾸거나 92일 이하의 기간을 선택하세요.",
  },
  previousPeriod: { en: "Previous period", ko: "이전 기간" },
  inPrevious: { en: "in the previous period", ko: "이전 기간" },
  metricBefore: { en: "{metric} before", ko: "이전 {metric}" },
  asTable: { en: "As a table", ko: "표로 보기" },
  time: { en: "Time", ko: "시간" },

  // Breakdowns
  ...named("card", {
    pages: ["Pages", "페이지"], sources: ["Sources", "유입"], places: ["Places and devices", "지역과 기기"],
    goals: ["Goals", "목표"],
  }),
  ...named("tab", {
    page: ["Page", "페이지"], entry_page: ["Entry page", "시작 페이지"], exit_page: ["Exit page", "종료 페이지"],
    channel: ["Channel", "채널"], source: ["Source", "소스"], referrer: ["Referrer", "리퍼러"],
    campaigns: ["Campaign", "캠페인"], utm_source: ["utm_source", "utm_source"], utm_medium: ["utm_medium", "utm_medium"],
    utm_campaign: ["utm_campaign", "utm_campaign"], utm_term: ["utm_term", "utm_term"],
    utm_content: ["utm_content", "utm_content"], country: ["Country", "국가"], language: ["Language", "언어"],
    device: ["Device", "기기"], browser: ["Browser", "브라우저"], os: ["System", "운영체제"],
    conversion_type: ["Conversion", "전환"], currency: ["Currency", "통화"], event_type: ["Event type", "이벤트 유형"],
  }),
  ...named("one", {
    page: ["Page", "페이지"], entry_page: ["Entry page", "시작 페이지"], exit_page: ["Exit page", "종료 페이지"],
    channel: ["Channel", "채널"], source: ["Source", "소스"], referrer: ["Referrer", "리퍼러"],
    utm_source: ["Campaign source", "캠페인 소스"], utm_medium: ["Campaign medium", "캠페인 매체"],
    utm_campaign: ["Campaign", "캠페인"], utm_term: ["Campaign term", "캠페인 검색어"],
    utm_content: ["Campaign content", "캠페인 콘텐츠"], country: ["Country", "국가"], language: ["Language", "언어"],
    device: ["Device", "기기"], browser: ["Browser", "브라우저"], os: ["System", "운영체제"],
    conversion_type: ["Conversion", "전환"], currency: ["Currency", "통화"], event_type: ["Event type", "이벤트 유형"],
  }),
  ...named("channel", {
    direct: ["Direct", "직접 유입"], search: ["Search", "검색"], social: ["Social", "소셜"], referral: ["Referral", "추천"],
    email: ["Email", "이메일"], paid: ["Paid", "유료 광고"], ai: ["AI assistant", "AI 어시스턴트"],
  }),
  ...named("device", { desktop: ["Desktop", "데스크톱"], mobile: ["Mobile", "모바일"], tablet: ["Tablet", "태블릿"] }),
  ...named("event", {
    page_view: ["Page view", "페이지뷰"], click: ["Click", "클릭"], conversion: ["Conversion", "전환"],
    heartbeat: ["Still on the page", "페이지에 머무는 중"], page_exit: ["Left the page", "페이지 떠남"],
    scroll: ["Scrolled", "스크롤"],
  }),
  campaignPart: { en: "Campaign parameter", ko: "캠페인 매개변수" },
  labelDirect: { en: "Direct", ko: "직접 유입" },
  labelUnknown: { en: "Unknown", ko: "알 수 없음" },
  labelOther: { en: "All others", ko: "기타" },
  nothingHere: { en: "Nothing in this range.", ko: "이 기간에는 데이터가 없습니다." },
  keptApart: {
    en: "Not available for one {what}: roll-ups keep each dimension apart. Remove the filter to see these figures.",
    ko: "집계는 항목별로 따로 저장되므로 ‘{what}’ 필터를 적용한 상태에서는 볼 수 없습니다. 필터를 해제하면 표시됩니다.",
  },
  more: { en: "Show more ({count} more)", ko: "더 보기 ({count}개 더 있음)" },
  fewer: { en: "Show fewer", ko: "간단히 보기" },
  csvName: { en: "Download as CSV", ko: "CSV로 내려받기" },
  openPage: { en: "Open the page", ko: "페이지 열기" },
  rate: { en: "{amount} per 100 sessions", ko: "세션 100개당 {amount}건" },

  // One page
  pageDetails: { en: "Page {page}", ko: "페이지 {page}" },
  beganHere: { en: "Sessions that began here", ko: "여기서 시작한 세션" },
  endedHere: { en: "Sessions that ended here", ko: "여기서 끝난 세션" },
  recentEvents: { en: "Recent events here", ko: "이 페이지의 최근 이벤트" },
  nobodyOnPage: { en: "Nobody is on this page right now.", ko: "지금 이 페이지에 있는 방문자가 없습니다." },

  // Sessions
  activeTitle: { en: "Active sessions", ko: "활성 세션" },
  someOf: { en: "{count} of {total}", ko: "{total}개 중 {count}개" },
  matching: { en: "{count} of {total} match", ko: "{total}개 중 {count}개 일치" },
  newestFirst: { en: "newest first", ko: "최신순" },
  orderHeld: { en: "order held while you point", ko: "포인터가 있는 동안 순서 고정" },
  pages: { en: "Pages", ko: "페이지" },
  durationHead: { en: "Duration", ko: "시간" },
  lastActivity: { en: "Last activity", ko: "최근 활동" },
  noPageYet: { en: "No page view yet", ko: "아직 페이지뷰 없음" },
  converted: { en: "converted", ko: "전환" },
  showMore: { en: "Show more", ko: "더 보기" },
  nobodyHere: {
    en: "Nobody is here right now. A session counts as active for 30 minutes after its last event.",
    ko: "지금은 방문자가 없습니다. 마지막 이벤트 이후 30분 동안 활성 세션으로 봅니다.",
  },
  nobodyMatches: { en: "None of the active sessions shown is of {label}.", ko: "표시된 활성 세션 중 일치하는 세션이 없습니다: {label}" },
  sessionsDoNotTell: {
    en: "Active sessions do not tell this dimension, so they cannot be filtered by it.",
    ko: "활성 세션에는 이 항목의 정보가 없어 필터를 적용할 수 없습니다.",
  },
  session: { en: "Session", ko: "세션" },
  sessionGone: { en: "This session is no longer kept.", ko: "더 이상 보관되지 않는 세션입니다." },
  active: { en: "Active", ko: "활성" },
  ended: { en: "Ended", ko: "종료" },
  close: { en: "Close", ko: "닫기" },
  timeline: { en: "Timeline", ko: "타임라인" },
  events: { en: { one: "{count} event", other: "{count} events" }, ko: "이벤트 {count}개" },
  lastEvents: { en: "last {shown} of {count} events", ko: "이벤트 {count}개 중 최근 {shown}개" },
  beats: { en: "{count} times, for {duration}", ko: "{count}번, {duration} 동안" },
  cameFrom: { en: "from {from}", ko: "유입 경로: {from}" },
  factBegan: { en: "Began", ko: "시작 시각" },
  factNow: { en: "Now on", ko: "현재 페이지" },
  factScrolled: { en: "Scrolled", ko: "스크롤" },
  factFrom: { en: "From", ko: "지역" },
  factVisitor: { en: "Visitor", ko: "방문자" },
};
